"""What is printed in the terminal: tables in which nothing is cut, in 80 columns and in a pipe."""

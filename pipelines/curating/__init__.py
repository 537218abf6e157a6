"""`python -m pipelines curate`: pictures of any kind in, a training set of people out (the idea of WebPerson).

options.py   what can be asked for
folder.py    the output folder, and what is kept of a run that was killed
command.py   the story that joins these
"""

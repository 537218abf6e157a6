"""`python -m pipelines curate`: pictures of any kind in, a training set of people out (the idea of WebPerson).

options.py   the options, checked
folder.py    the output folder, and what is kept of a run that was killed
curation.py  the whole of a curation
"""

"""The command `curate`: makes a training set of people from pictures of any kind (the idea of WebPerson).

options.py   the options, checked
models.py    detector, captioner and matcher, built from the options
folder.py    the output folder, and the state from which a killed run is resumed
curation.py  the whole of a curation

The rules and the judging are in `components.persons.curation`.
"""

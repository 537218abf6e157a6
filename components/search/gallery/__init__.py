"""Galleries of pictures: vectors, a table and thumbnails in a folder, in versions of which one answers.

    current                    the name of the version that answers ("000007"); replacing this file is the one moment of change
    source.json                source, model and settings of the last update
    forgotten.jsonl            tombstones: {"sha256", "when"}; never a name or an identity
    thumbnails/ab/<id>.webp    shared by the versions
    unfinished/                what an update has embedded so far; the next update goes on from it
    lock                       held by the process that writes
    versions/000007/           complete and immutable; two are kept, the one that answers and the one before
      gallery.json             format 2, size, model, settings, source, digest of each file, facts about the approximate index
      vectors.npy              (N, D) float32 or float16 unit vectors, to be memory-mapped
      pictures.parquet         one row per vector, see `layout.SCHEMA`; then the source's own columns
      left_out.csv             files of the source that are not in this version, each with the reason
      approximate.index        if asked for

layout.py      names and formats
reading.py     `Gallery`, one opened version; `current_version`
writing.py     writes a version and lets it answer
places.py      reads the pictures of a folder or a bucket, and nothing outside of it
sources.py     lists the pictures of a folder, a manifest, a data set or a bucket
manifests.py   reads manifests
merging.py     tells pictures apart by their bytes
unfinished.py  what an update has embedded before it was killed
tombstones.py  the digests of forgotten pictures
removal.py     removes what tombstones name
thumbnails.py  small pictures

Pictures stay where they are: a version records their paths, and their SHA-256 is checked whenever one is read.
"""

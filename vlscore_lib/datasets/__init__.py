"""Data sets with boxes: a format a file, and `reading`, which finds out which one a folder has."""

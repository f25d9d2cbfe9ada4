"""Labels of many photos: which photos, what was found so far, and the files that other tools read."""

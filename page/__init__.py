"""What `app.py` is made of: photos, words, options, what is kept, pictures, and several photos at once."""

"""From files to arrays: sound, pictures, films. Everything is decoded completely; whatever is damaged is named."""

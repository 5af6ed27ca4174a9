"""Video files: probing, cutting, verification levels, and the ffmpeg program."""

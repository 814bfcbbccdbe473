"""Scripts that run inside images, as `python3 -c`: plain standard library, for whatever Python 3 an image has."""

__version__ = "2.9.0+rocm7.0"
hip = "7.0.51831"
cuda = None

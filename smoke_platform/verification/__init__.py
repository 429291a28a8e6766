"""The proof of a running platform: what went in, what came out, and whether the two are equal.

Stands above every other room, as the command line does: it starts a platform, feeds it, harms it and looks.
"""

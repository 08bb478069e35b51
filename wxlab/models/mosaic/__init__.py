"""Mosaic: block-sparse attention on the HEALPix mesh, probabilistic from one noise vector."""

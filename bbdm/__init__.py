"""Brownian bridge diffusion: pseudo-SAR pictures of optical ships."""

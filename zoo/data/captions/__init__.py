"""Captioned images: digits in colour drawn on the fly, emoji, and one's own."""

from zoo.data.captions.dataset import CaptionedImages

__all__ = ["CaptionedImages"]

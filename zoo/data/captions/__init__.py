"""Captioned images: digits in colour drawn on the fly, emoji, and one's own."""

from zoo.data.captions.dataset import CaptionedImages
from zoo.data.captions.token_set import CaptionedTokens

__all__ = ["CaptionedImages", "CaptionedTokens"]

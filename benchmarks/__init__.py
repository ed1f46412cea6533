"""Measurements of streamtrain against what people would use instead."""

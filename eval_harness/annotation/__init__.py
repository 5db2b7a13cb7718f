"""Blind comparison of models' outputs by people, two at a time, on a local web page."""

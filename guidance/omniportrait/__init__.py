"""OmniPortrait (ICLR 2026): Eq. 5 is in objective.py, 6 in mask.py, 7 and 8 in match.py, 9 to 11 in guide.py."""

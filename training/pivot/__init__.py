"""Data, losses and loop of the Pivot ID Encoder's training (OmniPortrait, Sec. 3.2, Eq. 5)."""

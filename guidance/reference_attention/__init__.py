"""Reference Attention: a likeness without trained weights, by what a reference face's tokens give to self-attention.

The untrained relative of IC-Portrait's in-context halves, of MasaCtrl and ConsiStory, on which OmniPortrait builds.
"""

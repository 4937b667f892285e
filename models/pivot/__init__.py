"""The Pivot ID Encoder (OmniPortrait, Sec. 3.2): the network, its file, and the handle that nodes pass on."""

"""SPF-Portrait: teach a base model one attribute and leave the rest of its behaviour as it was.

Only the paper's abstract and pipeline figures are public: the equations are reconstructed from those, and numbered as
in docs/spf_portrait.md. What is ours, and what the figures show, is said at each.
"""

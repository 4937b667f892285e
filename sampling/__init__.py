"""How a method enters ComfyUI: patches on a clone of the model, the session of one sampling run, whose rows of a call
are whose, and what a conditioning carries."""

"""What is loaded from disk: pivot encoders and face models."""

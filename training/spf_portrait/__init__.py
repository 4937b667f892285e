"""SPF-Portrait's training: a LoRA for one attribute, in two stages (docs/spf_portrait.md)."""

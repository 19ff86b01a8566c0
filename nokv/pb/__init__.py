"""Generated from proto/ by scripts/dev/gen_proto.py: never edited by hand."""

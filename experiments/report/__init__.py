"""Run folders -> tables, figures and words."""

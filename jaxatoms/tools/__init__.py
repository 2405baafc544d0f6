"""What every command needs around its work: command lines, locks, drafts, provenance, compiled programs."""

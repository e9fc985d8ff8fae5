"""Everything that is learnt, one module and one command each."""

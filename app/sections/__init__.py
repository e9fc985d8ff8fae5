"""The page, section by section: what each control does, without a widget."""

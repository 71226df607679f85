"""The measured operations: each module makes operations of one kind, for pdc and its peers alike."""

"""What is measured: each module makes operations of one kind, for pdc and its peers alike."""

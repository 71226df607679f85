"""The peer counts models that have a mixin, ours those of PDC_DJANGO_MODELS."""


def ExportModelOperationsMixin(_: str) -> type:  # noqa: N802 - the name of the peer
    """A mixin without anything."""
    return type("Mixin", (), {})

"""The option of histograms, for metrics that no framework configures."""


def native_histograms() -> bool:
    """True where ``PDC_NATIVE_HISTOGRAMS`` asks for native buckets. Raises OptionError."""
    from .. import options  # only here, as it takes long to import

    return options.native_histograms()

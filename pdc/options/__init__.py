"""The options of all frameworks: one list, read from settings or the environment, checked at start-up."""

from .environment import OptionError
from .options import Options as Options
from .options import OptionsT as OptionsT
from .options import from_header, from_response_header
from .options import native_histograms as native_histograms
from .options import option as option
from .options import setup_from_environ as setup_from_environ
from .options import with_options_shown as with_options_shown
from .values import NAMES as NAMES
from .values import SIZE_BUCKETS as SIZE_BUCKETS
from .values import Label as Label
from .values import parse_flag as parse_flag
from .values import parse_items as parse_items

__all__ = ["OptionError", "from_header", "from_response_header"]

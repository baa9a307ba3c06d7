from ppll.message import *  # noqa
from ppll.message import ALIGNMENT, FEATURES, NOTHING_SAVED, TARGETS, Kind, Message, canonical  # noqa

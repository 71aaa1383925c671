"""Points to ask about, from the file that people have: arrays, tables, images. One reader for every command.

`reading.read` knows the formats, each of them in a module of its own; `fitting.fit` makes of what was read points of the
model's shape, in units of its input, or says why it cannot. What was decided on the way (an array by its name, a label
column, an order of channels) is a note that people see; what could mean two things is refused.
"""

from lipverify.loading.data.fitting import Points, fit
from lipverify.loading.data.hints import label_hint
from lipverify.loading.data.reading import read, read_points
from lipverify.loading.data.settings import Settings

__all__ = ["Points", "Settings", "fit", "label_hint", "read", "read_points"]

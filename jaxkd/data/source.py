"""What a data source is.

A source lives in `jaxkd/data/sources/<name>.py` (or in the user's own package) and offers `DEFAULTS` and
`build(hp) -> source`, an object with

    name     str, how reports call it
    note     str, one line that stands beside every number made from it ('' when there is nothing to warn of)
    labels   tuple of C label names
    cases    tuple of Case, known without decoding a single image
    skipped  tuple of (case id, reason): what `on_error='skip'` left out
    [i]      the record of case i, a dict of numpy arrays and strings

A record of images:
             image  uint8, uint16 or float32, [H,W] or [H,W,3]
             text   str, '' when the case has none
             label  float32 [C]: 1 present, 0 absent, -1 uncertain, nan not mentioned
             boxes  float32 [n,5]: label index (-1: tied to no label), x, y, w, h in pixels of this image
             masks  uint8 [n,H,W], optional, the region in each box: attention is then scored against it
             table  list of dicts, optional: what is written of each finding, column -> cell, both strings
    text(i)  optional: the text of case i alone, so that a vocabulary is learned without decoding an image
    table(i) optional: likewise, the table of case i alone
    values   optional: float32 [n,C], the labels of all cases, known without decoding an image
    paths(i) optional: the files of case i, whose sizes a store of prepared cases keeps and compares
A source without images has no key `image`, and only text to learn from.

A record of volumes, whose labels exclude each other:
             <modality>  jaxkd.data.volume.Volume on its own grid; a case that lacks the modality has no such key
             label  int32, index into `labels`
             <task> int32, index into tasks[task], -1 where it is not known
             centre {modality: world mm (x,y,z), RAS}, optional: what the crop is centred on
    tasks    dict: further labels that a network may be trained for, name -> class names
    paths(i) as above
    targets  dict: 'label' and every task -> int32 [n], so that splits and priors need no volume

A record with a label for each place (segmentation). `labels` names all classes, the background first; 255 is ignored.
    slices   image [H,W] or [H,W,3] as above; label uint8 [H,W]; spacing float32 [3] mm between slices, rows and columns (nan
             where it is not known); case str. The cases of one `study`, in the order of `cases`, are the slices of one volume
    volumes  <modality> Volume; label Volume of whole numbers on its own grid (without one all of it is ignored); case str;
             instances Volume, optional: the number of the lesion that a voxel belongs to; <task> int32 as above

A source knows files, never augmentation. It must pickle (workers get a copy) and `[i]` must be thread-safe.
"""
import dataclasses
import gc

from jaxkd.config import plugins

IGNORED = 255  # the label of a place that counts nowhere


@dataclasses.dataclass(frozen=True)
class Case:
    """One image, or one set of volumes. Images of a study share report and labels; images of a patient never part in a split."""

    id: str
    patient: str
    study: str = ''
    split: str = ''  # given by the archive; '' means: to be drawn
    groups: dict = dataclasses.field(default_factory=dict)  # e.g. {'view': 'AP'}: subgroup tables, strata of a split


def build(hp):
    """The source of a resolved data.source.

    Tables make millions of small objects, all of which stay: Python's search for cycles among them, again and again, would take
    longer than to read them, so it waits.
    """
    module, collects = plugins.load('data/sources', hp.name), gc.isenabled()
    gc.disable()
    try:
        return module.build(hp)
    finally:
        if collects:
            gc.enable()

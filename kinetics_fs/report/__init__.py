"""What a cache has of a selection, as one page of HTML for who would rather look.

`gather` collects all that the page says, and `pictures` (with PyAV) looks into some clips; `render` makes the page of
it by `page.html.j2`. The page needs nothing beside itself: style, script and pictures are in it, and its policy
forbids the browser everything else.
"""

from kinetics_fs.report.gather import gather
from kinetics_fs.report.page import render
from kinetics_fs.report.pictures import Picture, pictures

__all__ = ["Picture", "gather", "pictures", "render"]

"""A report on a selection and a cache, as one HTML page.

`gather` collects the data, `pictures` decodes a frame of some clips (with PyAV), and `render` fills the template
`page.html.j2`. The page is self-contained: style, script and pictures are embedded, and its content security policy
forbids the browser to load anything else.
"""

from kinetics_fs.report.gather import gather
from kinetics_fs.report.page import render
from kinetics_fs.report.pictures import Picture, pictures

__all__ = ["Picture", "gather", "pictures", "render"]

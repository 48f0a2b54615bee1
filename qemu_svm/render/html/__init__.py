"""Results as pages and pictures; needs jinja2, which is imported when a page is made."""

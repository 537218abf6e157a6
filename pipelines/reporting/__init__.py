"""The page that shows a pipeline's results: `page.render`."""

"""The page in a browser: a picture, a question, and the search as it goes.

`routes` are its addresses, `watch` a search as a stream of pieces of its drawing (`show.live`),
`form` what may be chosen. `page.html.jinja`, `page.css` and `page.js` are the page: no build step,
no other host, and nothing is drawn in the browser that the server did not draw. Imports `show` and
what of `serve` is around it.
"""

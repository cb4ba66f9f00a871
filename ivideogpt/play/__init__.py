"""A person drives a world model from a browser: :mod:`game` plays, :mod:`server` talks to :file:`page.html`."""

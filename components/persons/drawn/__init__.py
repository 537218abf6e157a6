"""The drawn people: attributes, pictures, captions, caption noise, and the dataset written from them."""

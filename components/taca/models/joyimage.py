"""JoyImage-Edit and Edit Plus. Their reference pictures count as image."""

from components.taca.families import Family

JOYIMAGE_EDIT = Family(
    name="joyimage-edit",
    transformer="JoyImageEditTransformer3DModel",
    stock_processors=("JoyImageAttnProcessor",),
    double={"double_blocks": "num_layers"},
    timesteps=(0.0, 1000.0),
    text_first=False,
)
JOYIMAGE_EDIT_PLUS = Family(
    name="joyimage-edit-plus",
    transformer="JoyImageEditPlusTransformer3DModel",
    stock_processors=("JoyImageEditPlusAttnProcessor",),
    double={"double_blocks": "num_layers"},
    timesteps=(0.0, 1000.0),
    text_first=False,
    text_mask="encoder_hidden_states_mask",
    masks_padding=True,
)

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.schema import FEATURE_KINDS, TIME_UNITS, Feature, Schema, SchemaError

LEAST = {"interactions": {"user": "u", "item": "i"}}


def with_items(**features):
    return {**LEAST, "items": {"id": "i", "features": features}}


def test_a_schema_is_read_from_yaml(tmp_path):
    (tmp_path / "schema.yaml").write_text(
        """
        interactions: {user: customer, item: sku, time: at, unit: ms, event: action}
        items:
          id: sku
          features:
            brand: categorical
            name: {kind: text, column: title, show: true}
        """
    )
    schema = Schema.load(tmp_path / "schema.yaml")
    assert (schema.interactions.user, schema.interactions.unit, schema.interactions.weight) == ("customer", "ms", None)
    assert schema.items is not None
    assert schema.users is None
    brand, name = schema.items.features
    assert (brand.column, brand.kind, brand.filterable, brand.show) == ("brand", "categorical", True, False)
    assert (name.column, name.kind, name.filterable, name.show) == ("title", "text", False, True)
    assert schema.items.feature("name") is name


NAMES = st.text(min_size=1)
FEATURES = st.dictionaries(
    NAMES,
    st.fixed_dictionaries(
        {"kind": st.sampled_from(FEATURE_KINDS)},
        optional={
            "column": NAMES,
            "separator": NAMES,
            "unit": st.sampled_from(TIME_UNITS),
            "embed": st.booleans(),
            "show": st.booleans(),
        },
    ),
)
ENTITY = st.one_of(st.none(), st.fixed_dictionaries({"id": NAMES}, optional={"features": FEATURES}))
LOG = st.fixed_dictionaries(
    {"user": NAMES, "item": NAMES}, optional={"time": NAMES, "event": NAMES, "unit": st.sampled_from(TIME_UNITS)}
)


@given(st.fixed_dictionaries({"interactions": LOG}, optional={"items": ENTITY, "users": ENTITY}))
def test_what_a_schema_says_of_itself_reads_back_equal(said):
    schema = Schema.from_dict(said)
    assert Schema.from_dict(yaml.safe_load(yaml.safe_dump(schema.to_dict(), sort_keys=False))) == schema


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "the schema has no 'interactions'"),
        ({"interaction": {}}, "schema has no key 'interaction'; did you mean 'interactions'?"),
        ({"interactions": {"user": "u"}}, "interactions lacks 'item'; add it"),
        ({"interactions": {"user": "u", "itm": "i"}}, "interactions has no key 'itm'; did you mean 'item'?"),
        ({"interactions": "u"}, "interactions must map keys to values, got 'u'"),
        ({"interactions": {"user": "u", "item": "i", "unit": "sec"}}, "interactions.unit cannot be 'sec'"),
        ({"interactions": {"user": "u", "item": "i", "item_type": "int"}}, "did you mean 'integer'?"),
        (with_items(brand="categorial"), "feature 'brand' cannot be 'categorial'; did you mean 'categorical'?"),
        (
            with_items(brand={"kind": "text", "shown": True}),
            "items.features.brand has no key 'shown'; did you mean 'sho",
        ),
        (with_items(brand={"column": "b"}), "items.features.brand lacks 'kind'"),
        ({**LEAST, "items": {"features": {}}}, "items lacks 'id'"),
        ({**LEAST, "items": {"id": "i", "features": ["brand"]}}, "items.features must map names to kinds"),
    ],
)
def test_what_cannot_be_is_refused_with_the_nearest_valid_name(said, message):
    with pytest.raises(SchemaError) as error:
        Schema.from_dict(said)
    assert message in str(error.value)


def test_an_unknown_feature_is_named_with_the_nearest():
    schema = Schema.from_dict(with_items(brand="text", price="numeric"))
    assert schema.items is not None
    with pytest.raises(SchemaError, match=r"there is no feature 'pric'; did you mean 'price'\?"):
        schema.items.feature("pric")


def test_a_kind_is_checked_when_a_feature_is_made():
    with pytest.raises(SchemaError, match="the kind of feature 'x' cannot be 'number'; did you mean 'numeric'"):
        Feature("x", "number")  # type: ignore[arg-type]

"""IDs in Django REST framework."""

from pathlib import Path

import needs
from django_testing import AUTO, run_project

needs.library("rest_framework")


def test_rest_framework(tmp_path: Path) -> None:
    """IDs are strings wherever a serializer shows one, and what is no ID is an error of its field."""
    models = """
    class Customer(models.Model):
        number = SnowflakeField(unique=True)

    class Order(models.Model):
        customer = models.ForeignKey(Customer, models.CASCADE)
        by_number = models.ForeignKey(Customer, models.CASCADE, to_field="number", related_name="+")
        friends = models.ManyToManyField(Customer, related_name="+")
        outside = SnowflakeField(editable=True, null=True, default=None)
        count = models.BigIntegerField(default=5)

    class Special(Order):
        pass

    class Note(models.Model):
        special = models.ForeignKey(Special, models.CASCADE)
    """
    program = """
    import json
    call_command("makemigrations", "shop", verbosity=0)
    call_command("migrate", verbosity=0)
    from rest_framework import serializers
    from rest_framework.renderers import JSONRenderer
    from senet_fast.ids import to_string
    from senet_fast.ids.rest_framework import SnowflakeIDField, SnowflakeSerializerMixin
    from shop.models import Customer, Note, Order, Special

    class OrderSerializer(SnowflakeSerializerMixin, serializers.ModelSerializer):
        class Meta:
            model, fields = Order, "__all__"

    a, b = Customer.objects.create(), Customer.objects.create()
    data = {"customer": str(a.pk), "by_number": str(b.number), "friends": [str(a.pk), b.pk], "outside": str(2**63 - 1)}
    read = OrderSerializer(data=data)
    assert read.is_valid(), read.errors
    order = read.save()
    assert (order.customer, order.by_number, order.outside) == (a, b, 2**63 - 1) and set(order.friends.all()) == {a, b}
    shown = json.loads(JSONRenderer().render(OrderSerializer(order).data))
    shown["friends"].sort()
    assert shown == {**data, "id": str(order.pk), "friends": [str(a.pk), str(b.pk)], "count": 5}, shown
    OrderSerializer.Meta.depth = 1
    shown = json.loads(JSONRenderer().render(OrderSerializer(order).data))
    assert shown["customer"] == {"id": str(a.pk), "number": str(a.number)}, shown
    del OrderSerializer.Meta.depth

    for name in ("customer", "by_number", "outside"):
        for bad in ("x", "-1", -1, 2**63, "9" * 19, 1.5, True, [1], "1_0", "5", None):
            read = OrderSerializer(data={**data, name: bad})
            allowed = name == "outside" and bad in ("5", None)
            assert read.is_valid() is allowed, (name, bad)
            assert allowed or list(read.errors) == [name], read.errors
    read = OrderSerializer(data={**data, "outside": "x"})
    assert not read.is_valid() and "id is 'x'; expected a decimal number" in str(read.errors["outside"][0])

    class NoteSerializer(SnowflakeSerializerMixin, serializers.ModelSerializer):
        class Meta:
            model, fields = Note, "__all__"

    special = Special.objects.create(customer=a, by_number=b)
    note = Note.objects.create(special=special)
    assert NoteSerializer(note).data == {"id": str(note.pk), "special": str(special.pk)}

    class Short(serializers.Serializer):
        id = SnowflakeIDField(form="base62")

    assert Short({"id": 77}).data == {"id": to_string(77)}
    read = Short(data={"id": to_string(77)})
    assert read.is_valid() and read.validated_data == {"id": 77}
    assert not Short(data={"id": "77"}).is_valid()
    """
    run_project(tmp_path, models, program, {}, AUTO)

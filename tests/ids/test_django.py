"""IDs in Django: fields, their options, migrations, the auto field of a project."""

import textwrap
from pathlib import Path

import needs
import pytest
from django_testing import AUTO, CONTRIB, run_project
from ids_testing import CHECKOUT

needs.library("django")


def test_field(tmp_path: Path) -> None:
    """A primary key that is known before the row is saved, one INSERT a row, and in a prefork server's children."""
    models = """
    class Order(models.Model):
        id = SnowflakeField(primary_key=True)
        name = models.TextField()
    """
    program = """
    call_command("makemigrations", "shop", verbosity=0)
    call_command("migrate", verbosity=0)
    from shop.models import Order
    first = Order(name="a")
    assert first.id > 0
    with CaptureQueriesContext(connection, ) as queries:
        first.save()
    assert len(queries) == 1, queries.captured_queries
    Order.objects.bulk_create([Order(name=name) for name in "bcd"])
    ids = list(Order.objects.order_by("id").values_list("id", flat=True))
    assert ids[0] == first.id and len(set(ids)) == 4, ids
    assert list(Order.objects.order_by("id").values_list("name", flat=True)) == ["a", "b", "c", "d"]
    again = Order._meta.pk.clone()
    assert again.next_id() > max(ids) and not again.editable
    pid = os.fork()
    child = default_generator().next_id()
    if pid == 0:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    """
    run_project(tmp_path, models, program, {})


def test_options_are_djangos(tmp_path: Path) -> None:
    models = """
    def zero():
        return 0

    class Base(models.Model):
        own = SnowflakeField()
        class Meta:
            abstract = True

    class Order(Base):
        fixed = SnowflakeField(default=7, editable=True)
        called = SnowflakeField(default=zero, editable=True, blank=True)
        other = SnowflakeField(null=True, default=None, editable=True, blank=True)
        drawn = SnowflakeField(null=True, unique=True, generator="shop.models.generator")
        parent = models.ForeignKey("self", models.CASCADE, to_field="drawn", null=True)

    class Counter:
        def next_id(self):
            return 1000 + Order.objects.count()

    def generator():
        return Counter()
    """
    program = """
    call_command("makemigrations", "shop", verbosity=0)
    text = open("shop/migrations/0001_initial.py").read()
    for part in ("('own', senet_fast.ids.django.SnowflakeField(editable=False, generator="
                 "'senet_fast.ids.django.default_generator'))", "(default=7, editable=True, generator",
                 "(blank=True, default=shop.models.zero, editable=True, generator",
                 "(blank=True, default=None, editable=True, generator",
                 "(editable=False, generator='shop.models.generator', null=True, unique=True)"):
        assert part in text, (part, text)
    call_command("makemigrations", "shop", check=True, verbosity=0)  # a migration says what the model says
    call_command("migrate", verbosity=0)
    call_command("check")
    from shop.models import Order
    from django.forms import modelform_factory
    order = Order.objects.create()
    assert (order.fixed, order.called, order.other, order.drawn) == (7, 0, None, 1000), order.__dict__
    assert order.own > 2**50
    assert Order.objects.create(drawn=None, other=2**63 - 1, parent=order).drawn is None
    assert Order.objects.get(parent=order).other == 2**63 - 1
    form = modelform_factory(Order, fields=["fixed", "called", "other"])
    assert form({"fixed": "5", "other": ""}).save().other is None
    assert form().fields["fixed"].initial == 7
    assert "fixed" in form({"fixed": "x"}).errors
    """
    run_project(tmp_path, models, program, {})


FIRST = """
class Migration(migrations.Migration):
    initial = True
    operations = [migrations.CreateModel("Order", [
        ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
        ("name", models.TextField())])]
"""
ADDED = """
class Migration(migrations.Migration):
    dependencies = [("shop", "0001_initial")]
    operations = [migrations.AddField("Order", "number", {field})]
"""
ORDER = """
class Order(models.Model):
    name = models.TextField()
    number = SnowflakeField(unique=True)
"""
FILL = """
call_command("migrate", "shop", "0001", verbosity=0)
with connection.cursor() as cursor:
    for name in NAMES:
        cursor.execute("INSERT INTO shop_order (name) VALUES (%s)", [name])
def numbers():
    with connection.cursor() as cursor:
        cursor.execute("SELECT number FROM shop_order ORDER BY id")
        return [row[0] for row in cursor.fetchall()]
"""


def recipe() -> str:
    blocks = (CHECKOUT / "docs/ids.md").read_text().split("```python\n")
    return next(block.split("```")[0] for block in blocks if "class Migration" in block)


def test_the_recipe_for_rows_that_are_there(tmp_path: Path) -> None:
    program = """
    from io import StringIO
    call_command("sqlmigrate", "shop", "0002", stdout=StringIO())  # before there is a table
    NAMES = "abc"
    FILL
    call_command("migrate", verbosity=0)
    assert len(set(numbers())) == 3 and min(numbers()) > 2**50, numbers()
    from shop.models import Order
    assert Order.objects.create(name="d").number > max(numbers()[:3])
    call_command("makemigrations", "shop", check=True, verbosity=0)
    call_command("migrate", "shop", "0001", verbosity=0)
    """.replace("FILL", textwrap.indent(FILL, "    "))
    run_project(tmp_path, ORDER, program, {"0001_initial": FIRST, "0002_number": recipe()})


@pytest.mark.parametrize(
    ("rows", "field", "outcome"),
    [
        (0, "SnowflakeField()", "drawn"),
        (1, "SnowflakeField(unique=True)", "drawn"),
        (2, "SnowflakeField()", "refused"),
        (2, "SnowflakeField(unique=True)", "refused"),
        (2, "SnowflakeField(null=True)", "refused"),
        (2, "Further()", "refused"),
        (2, "SnowflakeField(default=default_generator().next_id)", "refused"),
        (2, "SnowflakeField(null=True, default=None)", "None"),
        (2, "SnowflakeField(default=7)", "7"),
    ],
)
def test_add_field(tmp_path: Path, rows: int, field: str, outcome: str) -> None:
    """Django calls a default once for all rows. Several rows never get one ID so, unless somebody wrote it down."""
    program = f"""
    NAMES = range({rows})
    FILL
    try:
        call_command("migrate", "shop", "0002", verbosity=0)
    except IntegrityError as error:
        assert {outcome!r} == "refused" and "several rows" in str(error) and "docs/ids.md" in str(error), error
    else:
        drawn = {outcome!r} == "drawn"
        assert all(number > 2**50 for number in numbers()) if drawn else numbers() == [{outcome}] * {rows}, numbers()
    """.replace("FILL", textwrap.indent(FILL, "    "))
    further = """
    from senet_fast.ids.django import default_generator

    class Further(SnowflakeField):
        def get_db_prep_save(self, value, connection):
            return super().get_db_prep_save(value, connection)
    """
    second = textwrap.dedent(further) + ADDED.format(field=field)
    program = program.replace("[refused]", "[]")
    run_project(tmp_path, ORDER, program, {"0001_initial": FIRST, "0002_number": second})


@pytest.mark.parametrize("rows", [1, 3])
def test_alter_field(tmp_path: Path, rows: int) -> None:
    """From null=True: NULLs of several rows are refused, one's is replaced; and RunPython may draw as it likes."""
    second = ADDED.format(field="SnowflakeField(null=True, default=None)")
    third = """
    def give(apps, schema_editor):
        order = apps.get_model("shop", "Order")
        field = order._meta.get_field("number")
        for row in order.objects.all()[2:]:
            order.objects.filter(pk=row.pk).update(number=field.get_default())
        order.objects.bulk_update([order(pk=row.pk) for row in order.objects.all()[2:]], ["number"])
        order.objects.create(name="new")

    class Migration(migrations.Migration):
        dependencies = [("shop", "0002_number")]
        operations = [
            migrations.AlterField("Order", "number", SnowflakeField(null=True)),
            migrations.RunPython(give),
            migrations.AlterField("Order", "number", SnowflakeField()),
        ]
    """
    program = f"""
    NAMES = range({rows})
    FILL
    call_command("migrate", "shop", "0002", verbosity=0)
    try:
        call_command("migrate", "shop", "0003", verbosity=0)
        assert {rows} == 1 and len(set(numbers())) == 2 and None not in numbers(), numbers()
    except IntegrityError as error:
        assert {rows} == 3 and "several rows" in str(error), error
    """.replace("FILL", textwrap.indent(FILL, "    "))
    run_project(tmp_path, ORDER, program, {"0001_initial": FIRST, "0002_number": second, "0003_number": third})


@pytest.mark.slow
def test_auto_field(tmp_path: Path) -> None:
    """DEFAULT_AUTO_FIELD: every way to save a row, with as many queries as Django's own auto fields take."""
    models = """
    class Customer(models.Model):
        name = models.TextField()

    class Order(models.Model):
        customer = models.ForeignKey(Customer, models.CASCADE)
        name = models.TextField()
        tags = models.ManyToManyField("Tag")

    class Special(Order):
        extra = models.TextField()

    class Tag(models.Model):
        name = models.TextField()
    """
    program = """
    from django.contrib import admin
    from django.urls import path
    from shop.models import Customer, Order, Special, Tag
    admin.site.register(Customer)
    urlpatterns = [path("admin/", admin.site.urls)]
    call_command("makemigrations", "shop", verbosity=0)
    text = open("shop/migrations/0001_initial.py").read()
    assert text.count("senet_fast.ids.django.SnowflakeAutoField(") == 3, text
    assert "default=" not in text.replace("default_generator", ""), text
    call_command("makemigrations", "shop", check=True, verbosity=0)
    call_command("migrate", verbosity=0)
    call_command("check")

    customer = Customer(name="a")
    assert customer.pk is None
    with CaptureQueriesContext(connection) as queries:
        customer.save()
    assert len(queries) == 1 and customer.pk > 2**50, queries.captured_queries
    customer.save()
    assert Customer.objects.count() == 1
    made = Customer.objects.create(name="b")
    bulk = Customer.objects.bulk_create([Customer(name=name) for name in "cde"])
    assert customer.pk < made.pk < bulk[0].pk < bulk[1].pk < bulk[2].pk
    assert set(Customer.objects.values_list("pk", flat=True)) == {row.pk for row in [customer, made, *bulk]}
    customer.pk = None
    customer._state.adding = True
    customer.save()  # a copy
    assert Customer.objects.filter(name="a").count() == 2
    assert Customer.objects.get_or_create(name="f")[1] and not Customer.objects.get_or_create(name="f")[1]
    assert Customer.objects.create(id=5, name="g").pk == 5
    special = Special.objects.create(customer=made, name="s", extra="x")
    special.tags.add(Tag.objects.create(name="t"))
    assert Order.objects.get(tags__name="t").pk == special.pk == special.order_ptr_id

    from django.forms import inlineformset_factory, modelform_factory
    form = modelform_factory(Customer, fields="__all__")
    assert list(form().fields) == ["name"] and form({"name": "h"}).save().pk > special.pk
    formset = inlineformset_factory(Customer, Order, fields=["name"], extra=1)
    data = {"order_set-TOTAL_FORMS": 2, "order_set-INITIAL_FORMS": 1, "order_set-0-id": special.pk,
            "order_set-0-name": "changed", "order_set-1-name": "new"}
    bound = formset(data, instance=made)
    assert bound.is_valid(), bound.errors
    bound.save()
    assert sorted(made.order_set.values_list("name", flat=True)) == ["changed", "new"]

    from django.contrib.auth.models import User
    from django.test import Client
    from django.test.utils import setup_test_environment
    setup_test_environment()
    User.objects.create_superuser("root", password="x")
    browser = Client()
    browser.force_login(User.objects.get())
    page = browser.get("/admin/shop/customer/add/")
    assert page.status_code == 200, (page, page.content)
    assert browser.post("/admin/shop/customer/add/", {"name": "by admin"}).status_code == 302
    added = Customer.objects.get(name="by admin")
    address = f"/admin/shop/customer/{added.pk}/change/"
    assert browser.get(address).status_code == 200
    assert browser.post(address, {"name": "renamed"}).status_code == 302
    added.refresh_from_db()
    assert added.name == "renamed" and added.pk > 2**50

    call_command("dumpdata", "shop", output="dump.json", verbosity=0)
    before = set(Order.objects.values_list("pk", "name"))
    Customer.objects.all().delete()
    call_command("loaddata", "dump.json", verbosity=0)
    assert set(Order.objects.values_list("pk", "name")) == before
    """
    run_project(tmp_path, models, program, {}, AUTO, CONTRIB)


def test_auto_field_with_a_default(tmp_path: Path) -> None:
    models = """
    from senet_fast.ids.django import SnowflakeAutoField

    def five():
        return 5

    class Order(models.Model):
        id = SnowflakeAutoField(primary_key=True, default=five)
    """
    program = """
    call_command("makemigrations", "shop", verbosity=0)
    assert "default=shop.models.five" in open("shop/migrations/0001_initial.py").read()
    call_command("migrate", verbosity=0)
    from shop.models import Order
    assert (Order().pk, Order.objects.create().pk) == (5, 5)
    """
    run_project(tmp_path, models, program, {})

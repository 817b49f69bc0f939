"""The shop's first tables."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Orders and payments."""

    initial = True
    operations = [  # noqa: RUF012
        migrations.CreateModel(
            name="Order",
            fields=[
                ("order_id", models.CharField(max_length=40, primary_key=True, serialize=False)),
                ("total", models.DecimalField(decimal_places=2, max_digits=12)),
            ],
        ),
        migrations.CreateModel(
            name="Payment",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("order_id", models.CharField(max_length=40)),
                ("total", models.DecimalField(decimal_places=2, max_digits=12)),
            ],
        ),
    ]

"""An extension of griffe for the reference: `**changes: Unpack[XChanges]` is shown as the keyword arguments that it is.

griffe's own `unpack_typeddict` reads the docstring before it does so, and therefore warns of arguments that our
docstrings explain; and it shows no defaults, which here are those of `XSettings`, beside `XChanges`.
"""

from typing import Any

from griffe import Class, Expr, ExprSubscript, Extension, Function, Parameter, ParameterKind


class NamedChanges(Extension):
    """Puts the fields of an unpacked TypedDict into the signature."""

    def on_function(self, *, func: Function, **_: Any) -> None:
        for parameter in list(func.parameters):
            unpacked = parameter.annotation
            if parameter.kind is not ParameterKind.var_keyword or not isinstance(unpacked, ExprSubscript):
                continue
            if unpacked.canonical_path == "typing.Unpack" and isinstance(unpacked.slice, Expr):
                del func.parameters[parameter.name]
                for named in self._named(func.modules_collection[unpacked.slice.canonical_path]):
                    func.parameters[named.name] = named

    @staticmethod
    def _named(changes: Class) -> list[Parameter]:
        settings = changes.module.members.get(changes.name.replace("Changes", "Settings"))
        defaults = {} if settings is None else {name: field.value for name, field in settings.attributes.items()}
        fields = changes.attributes  # those of the TypedDicts that it extends come first; settings have them in order
        return [
            Parameter(
                name,
                annotation=fields[name].annotation,
                kind=ParameterKind.keyword_only,
                default=defaults.get(name) or "...",
            )
            for name in dict.fromkeys((*defaults, *fields))
            if name in fields
        ]

"""SQLAlchemy's ORM through the proxy, with psycopg 2: sessions, reflection of the catalogs, a pool."""

import os

import sqlalchemy
from sqlalchemy import Column, ForeignKey, Integer, String, create_engine, func, inspect, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, declarative_base, relationship, selectinload

checks = 0
Base = declarative_base()


def check(what, found, expected):
    global checks
    checks += 1
    assert found == expected, f"{what}: found {found!r}, expected {expected!r}"


class Author(Base):
    __tablename__ = "orm_author"
    id = Column(Integer, primary_key=True)
    name = Column(String(40), unique=True, nullable=False)
    books = relationship("Book", back_populates="author", cascade="all, delete-orphan")


class Book(Base):
    __tablename__ = "orm_book"
    id = Column(Integer, primary_key=True)
    title = Column(String, nullable=False)
    author_id = Column(ForeignKey("orm_author.id"), nullable=False)
    author = relationship("Author", back_populates="books")


engine = create_engine(os.environ["PGHERD_URL"].replace("postgresql://", "postgresql+psycopg2://"), pool_size=4)
Base.metadata.drop_all(engine)
Base.metadata.create_all(engine)

with Session(engine) as session, session.begin():
    for a in range(20):
        session.add(Author(name=f"author {a}", books=[Book(title=f"book {a}.{b}") for b in range(5)]))
with Session(engine) as session:
    authors = session.scalars(select(Author).options(selectinload(Author.books)).order_by(Author.id)).all()
    check("what another session wrote", [len(author.books) for author in authors], [5] * 20)
    authors[0].books.pop()
    session.flush()
    check("inside the transaction", session.scalar(select(func.count(Book.id))), 99)
    session.rollback()
    check("after a rollback", session.scalar(select(func.count(Book.id))), 100)
with Session(engine) as session:
    session.add(Author(name="author 1"))
    try:
        session.commit()
        raise AssertionError("a duplicate was accepted")
    except IntegrityError:
        session.rollback()
    with session.begin_nested():
        session.add(Author(name="nested"))
    session.commit()
    check("a savepoint", session.scalar(select(func.count()).where(Author.name == "nested")), 1)
    locked = session.scalars(select(Author).where(Author.name == "nested").with_for_update()).one()
    locked.name = "renamed"
    session.commit()
    check("a row that was locked first", session.get(Author, locked.id).name, "renamed")
inspector = inspect(engine)
check("reflected columns", [column["name"] for column in inspector.get_columns("orm_book")], ["id", "title", "author_id"])
check("reflected keys", inspector.get_foreign_keys("orm_book")[0]["referred_table"], "orm_author")
with engine.connect().execution_options(stream_results=True) as connection:
    check("a streamed result", len(connection.execute(select(Book.title)).all()), 100)
with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
    connection.execute(sqlalchemy.text("INSERT INTO orm_author (name) VALUES ('autocommit')"))
    found = connection.execute(sqlalchemy.text("SELECT name FROM orm_author WHERE name = 'autocommit'")).scalar()
    check("a read behind an autocommit write", found, "autocommit")
engine.dispose()
print(f"{checks} checks with SQLAlchemy {sqlalchemy.__version__}")
